"""What a recipe would cost, rehearsed in miniature before anything is started."""
