"""Whether a device computes what it is asked to: fast ways of running a network beside the plain one."""
