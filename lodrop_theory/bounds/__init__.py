"""One file per source; each public function reads inputs and returns a result."""
