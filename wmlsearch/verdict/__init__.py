"""What a search is worth: scores, statistics, the champion, the evaluation on the sealed test."""
