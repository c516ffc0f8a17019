"""An analysis shown: terminal, JSON, CSV, page. What is counted, and how, is in compiler/cost."""
