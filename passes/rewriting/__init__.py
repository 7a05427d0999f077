"""The rewrite: what a method reads, what follows the tokens, what is repaired behind them, and the proof."""
