"""Layers of two checkouts of normlab beside each other, in one run: is any row slower than it was?"""
