"""An online code as a file: sent, received, and the program that receives it."""
