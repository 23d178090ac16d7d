"""How the container image is made: its locked packages, and a build where no container engine runs."""
