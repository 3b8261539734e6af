"""Tasks of several runs on one worker: which may run beside which, and what the others wait for."""
