"""The equations of all algorithms, one pure function each, in the papers' symbols.

The derivative of an equation stands beside it. All are compiled loops over arrays: at the sizes of reinforcement
learning an autograd graph costs more than the arithmetic. A function whose name ends in ``_back`` adds d * (derivative)
to its last arguments, where d is the derivative of a loss with respect to the function's value. The tests compare every
derivative with autograd on an independent version.

Axes: K agents, b samples, a actions, T time, n copies, d weights.
"""
