"""Real models to test and measure on: fetched from packages, or exported from definitions in this folder."""
