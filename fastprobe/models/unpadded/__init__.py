"""BERT-family encoders on tokens without padding."""
