"""Scores of enhanced speech, how dynamic the gates are, and the figure that shows them."""
