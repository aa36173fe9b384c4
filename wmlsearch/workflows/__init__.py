"""The jobs (search, train, predict, sealed test, forecast), and the parts that they share."""
