"""Questions as people ask them: many wordings of one meaning, for any database."""
