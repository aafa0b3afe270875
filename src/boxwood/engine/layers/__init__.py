"""What is done to layer directories, each job in a jailed child of the zygote: copy, merge, remove."""
