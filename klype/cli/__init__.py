"""The command line. Only this room reads the environment; torch is imported inside the commands that compute."""
