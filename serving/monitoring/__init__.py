"""How the models are doing: the drift of their rows and predictions, and their quality."""
