"""One module per group of addresses; each turns parameters into a plan and a result into an answer."""
