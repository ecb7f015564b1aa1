"""The web pages: each shows a person what the JSON API answers to a program."""
