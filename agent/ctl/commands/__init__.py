"""The commands of agentctl: one file for each group that a person would look for together."""
