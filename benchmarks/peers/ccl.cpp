// oneCCL in the comparison (peer.h). The ranks are plain processes; rank 0 hands the address of its
// key-value store on in the file PEER_DIR/ccl.
#include "peer.h"

#include <oneapi/ccl.hpp>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <unistd.h>

namespace {
std::unique_ptr<ccl::communicator> comm;
std::string version;

ccl::kvs::address_type exchange(int rank, ccl::shared_ptr_class<ccl::kvs> &kvs) {
    const std::string path = std::string(std::getenv("PEER_DIR")) + "/ccl", draft = path + ".new";
    ccl::kvs::address_type address;
    if (rank == 0) {
        kvs = ccl::create_main_kvs();
        address = kvs->get_address();
        std::ofstream file(draft, std::ios::binary);
        file.write(address.data(), (std::streamsize)address.size());
        file.close();
        if (std::rename(draft.c_str(), path.c_str()) != 0)
            peer_die("the key-value store's address cannot be written");
        return address;
    }
    for (int i = 0; i < 600; i++, usleep(100000)) {
        std::ifstream file(path, std::ios::binary);
        if (file.read(address.data(), (std::streamsize)address.size())) {
            kvs = ccl::create_kvs(address);
            return address;
        }
    }
    peer_die("rank 0 has not written the key-value store's address");
}
} // namespace

void peer_init(int *, char ***, int *rank_p, int *size_p, const char **version_p) {
    ccl::shared_ptr_class<ccl::kvs> kvs;
    *rank_p = std::atoi(std::getenv("PEER_RANK"));
    *size_p = std::atoi(std::getenv("PEER_SIZE"));
    ccl::init();
    exchange(*rank_p, kvs);
    comm.reset(new ccl::communicator(ccl::create_communicator(*size_p, *rank_p, kvs)));
    version = ccl::get_library_version().full;
    *version_p = version.c_str();
}

void peer_finish(void) {
    comm.reset();
}

void *peer_alloc(size_t bytes, int) {
    void *p = nullptr;
    if (posix_memalign(&p, 4096, bytes) != 0)
        peer_die("no memory");
    return p;
}

void peer_barrier(void) {
    ccl::barrier(*comm);
}

void peer_run(peer_op_t op, const float *in, float *out, size_t count) {
    const auto type = ccl::datatype::float32;
    switch (op) {
    case PEER_ALLREDUCE:
        ccl::allreduce(out, out, count, type, ccl::reduction::sum, *comm).wait();
        break;
    case PEER_ALLGATHER: ccl::allgather(in, out, count, type, *comm).wait(); break;
    case PEER_REDUCE_SCATTER:
        ccl::reduce_scatter(in, out, count, type, ccl::reduction::sum, *comm).wait();
        break;
    case PEER_BROADCAST: ccl::broadcast(out, count, type, 0, *comm).wait(); break;
    case PEER_ALLTOALL: ccl::alltoall(in, out, count, type, *comm).wait(); break;
    case PEER_MOVE: break;
    }
}
