"""A text in its order, by a sent model and an adaptive mixture together"""
