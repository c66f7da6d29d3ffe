"""Messages of the control API, generated from `proto/agent/v1/` by `scripts/codegen`."""
