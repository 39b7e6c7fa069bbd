"""How much each sequence counts in the updates, as a file that a code is charged with"""
