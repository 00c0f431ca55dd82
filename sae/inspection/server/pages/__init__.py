"""The pages: rendered on the server, complete without script, every state in the address."""
