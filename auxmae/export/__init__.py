"""Features out: a frozen encoder's features of whole data sets, written in bounded memory, going on where it stopped."""
