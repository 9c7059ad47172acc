"""What users need to test their own jobs and stores."""
