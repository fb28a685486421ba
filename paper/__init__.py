"""The paper's figures and tables as named experiments: what is run, measured and drawn.

Data's way: :mod:`.registry` (all experiments, as data of :mod:`.spec`) -> :mod:`.scales` (their
configurations at full, small or smoke size) -> training runs -> records -> figures, tables, a page.
"""
