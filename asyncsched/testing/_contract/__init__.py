"""The rules of the store contract, one module for each topic; :class:`asyncsched.testing.StoreContract` joins them."""
