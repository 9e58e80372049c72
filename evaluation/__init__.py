"""The evaluation gate: golden sets through lm-eval, paired statistics, a pure verdict, its report."""
