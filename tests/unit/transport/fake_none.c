/*
 * A library that is no MPI plug-in (test_mpi_loader.c).
 */
extern int not_a_plugin;
int        not_a_plugin = 1;
