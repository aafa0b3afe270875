"""The `boxwood` command. It knows the SDK and nothing of the server but how to start one."""
