"""The command line: a file a group of commands, each of which reads its options, calls the rooms, and prints.

torch is imported inside the commands that compute.
"""
