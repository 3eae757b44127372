"""Encodings made of others: by a temperature, within a window, by head.

The class of an encoding that is composed is made from the classes that it consists of, so that whatever an encoding does, or will ever be
asked for, it does by inheritance: nothing here lists the stages.
"""
