-- Each one is a page that every run's end has to write. Runs that ended long ago began long ago, which their ids tell.
DROP INDEX runs_completed;
