"""Runner of BERT-family encoders on the tokens of a batch without padding."""
