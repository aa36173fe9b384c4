"""From a search to what it is worth: leaderboard, figures."""
