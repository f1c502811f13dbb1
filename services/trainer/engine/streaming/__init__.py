"""Parts of the streaming executor: block attention, stores, and the model taken apart."""
