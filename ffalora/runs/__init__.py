"""What a run reads and what it leaves: its data, evaluation, the finished adapter, the environment, the folder."""
