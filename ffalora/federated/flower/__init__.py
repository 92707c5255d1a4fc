"""Real federations: the same configuration and methods, with clients and server as Flower apps."""
