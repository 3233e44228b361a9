"""Architecture search: spaces, rewards, evaluators of accuracy, searchers."""
