"""The checks of `diffusion doctor`: one subject a file. A check changes nothing, and no message shows a password."""
