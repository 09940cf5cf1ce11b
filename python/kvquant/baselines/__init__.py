"""`kvquant bench --baseline`: other engines and caches, beside kvquant, on the same shapes.

Every engine is a process that prints JSON; engines take turns, forwards and then backwards.
"""
