"""What inputs tell: inner values of a model, streamed, and their moments and histograms, in bounded memory."""
