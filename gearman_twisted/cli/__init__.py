"""The commands ``gearman`` and ``gearadmin``.

What their options mean stands in one module, what is done in others, so that ``--help`` answers without
loading a reactor.
"""
