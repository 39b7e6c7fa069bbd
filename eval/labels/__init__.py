"""Codes of labels given inputs: who predicts them, two-part codes as files, and one table of all codes"""
