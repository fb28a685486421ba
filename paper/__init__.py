"""The paper's figures and tables as named experiments: what is run, measured and drawn.

The way: ``experiments/*.yaml`` -> :mod:`.catalog` (configurations at full, small or smoke size) ->
:mod:`.runs` (a sweep) -> :mod:`.records` -> :mod:`.output` (figures, tables, claims, a page).
:mod:`.theory` checks the theorems on random numbers, without training. ``python -m paper`` is the
command; it is part of the checkout, not of the installed package.
"""
