"""agentctl: the command line of a node. Knows the API's client and the configuration, never the daemon."""
