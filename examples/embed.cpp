// hora in a C++ program: three small classes make communicators, memory and requests clean up after
// themselves and turn errors into exceptions. Copy what you need.
//
//     c++ -std=c++11 embed.cpp $(pkg-config --cflags --libs hora) -o embed
//     hora run -np 3 ./embed

#include <hora/hora.h>

#include <cstddef>
#include <cstdint>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

struct HoraError : std::runtime_error {
    HoraError(const std::string &what, hora_status_t status)
        : std::runtime_error(what + ": " + hora_last_error()), status(status) {}
    hora_status_t status;
};

inline void check(hora_status_t status, const char *what) {
    if (status != HORA_OK)
        throw HoraError(what, status);
}

// hora's number for a C++ type.
template <typename T> struct Type;
template <> struct Type<float> { static const hora_dtype_t dtype = HORA_FLOAT32; };
template <> struct Type<double> { static const hora_dtype_t dtype = HORA_FLOAT64; };
template <> struct Type<std::int32_t> { static const hora_dtype_t dtype = HORA_INT32; };
template <> struct Type<std::int64_t> { static const hora_dtype_t dtype = HORA_INT64; };

// An operation in flight. It must be waited for: the destructor does, if nobody has.
class Request {
public:
    explicit Request(hora_request_t *request) : request_(request) {}
    Request(Request &&other) noexcept : request_(other.request_) { other.request_ = nullptr; }
    Request(const Request &) = delete;
    Request &operator=(Request other) noexcept {
        std::swap(request_, other.request_);
        return *this;
    }
    ~Request() {
        if (request_ != nullptr)
            hora_request_wait(request_); // a destructor must not throw
    }

    bool test() {
        int done = 0;
        check(hora_request_test(request_, &done), "request");
        return done != 0;
    }
    void wait() {
        hora_request_t *request = request_;
        request_ = nullptr; // it is freed, well or not
        check(hora_request_wait(request), "request");
    }

private:
    hora_request_t *request_;
};

class Communicator {
public:
    // All ranks of the job.
    Communicator() : comm_(nullptr, hora_comm_free) {
        hora_comm_t *comm;
        check(hora_comm_create(nullptr, &comm), "start");
        comm_.reset(comm);
    }

    int rank() const { return hora_comm_rank(comm_.get()); }
    int size() const { return hora_comm_size(comm_.get()); }

    // The ranks that pass the same color.
    Communicator split(int color, int key = 0) {
        hora_comm_t *part;
        check(hora_comm_split(comm_.get(), color, key, &part), "split");
        return Communicator(part);
    }

    template <typename T> void allreduce(T *data, std::size_t count, hora_op_t op = HORA_SUM) {
        check(hora_allreduce(comm_.get(), data, data, count, Type<T>::dtype, op, nullptr),
              "allreduce");
    }

    // The data must stay until the request has been waited for.
    template <typename T>
    Request start_allreduce(T *data, std::size_t count, hora_op_t op = HORA_SUM) {
        hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
        hora_request_t     *request;
        options.request_p = &request;
        check(hora_allreduce(comm_.get(), data, data, count, Type<T>::dtype, op, &options),
              "allreduce");
        return Request(request);
    }

    template <typename T> std::vector<T> allgather(const T &mine) {
        std::vector<T> all(static_cast<std::size_t>(size()));
        check(hora_allgather(comm_.get(), &mine, all.data(), 1, Type<T>::dtype, nullptr),
              "allgather");
        return all;
    }

    hora_comm_t *get() const { return comm_.get(); }

private:
    explicit Communicator(hora_comm_t *comm) : comm_(comm, hora_comm_free) {}
    std::unique_ptr<hora_comm_t, hora_status_t (*)(hora_comm_t *)> comm_;
};

// Memory that the ranks of a host share. Must go before its communicator.
template <typename T> class Memory {
public:
    Memory(const Communicator &comm, std::size_t count) : comm_(comm.get()), count_(count) {
        void *data;
        check(hora_alloc(comm_, count * sizeof(T), &data), "memory");
        data_ = static_cast<T *>(data);
    }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;
    ~Memory() { hora_free(comm_, data_); }

    T *data() { return data_; }
    std::size_t size() const { return count_; }
    T &operator[](std::size_t i) { return data_[i]; }
    T *begin() { return data_; }
    T *end() { return data_ + count_; }

private:
    hora_comm_t *comm_;
    std::size_t  count_;
    T           *data_;
};

static void expect(bool holds, const char *what) {
    if (!holds)
        throw std::logic_error(what);
}

static void demo() {
    Communicator world;
    const int    n = world.size(), me = world.rank();

    std::vector<double> sums(1000, me + 1.0);
    world.allreduce(sums.data(), sums.size());
    expect(sums.back() == n * (n + 1) / 2.0, "sum over ranks");

    Memory<float> gradients(world, 100000); // in shared memory: no copies on the way
    for (float &value : gradients)
        value = static_cast<float>(me);
    Request adding = world.start_allreduce(gradients.data(), gradients.size(), HORA_AVERAGE);
    double work = 0; // whatever the program does meanwhile
    while (!adding.test())
        work += 1;
    adding.wait();
    expect(gradients[99999] == static_cast<float>(n - 1) / 2, "average over ranks");

    Communicator half = world.split(me % 2); // even and odd ranks
    std::vector<std::int32_t> members = half.allgather<std::int32_t>(me);
    for (std::size_t i = 0; i < members.size(); i++)
        expect(members[i] == 2 * static_cast<int>(i) + me % 2, "members of my half");

    try {
        world.allreduce(&work, 1, HORA_BXOR); // no such operation on double
        expect(false, "an exception");
    } catch (const HoraError &error) {
        expect(std::string(error.what()).find("bxor") != std::string::npos, error.what());
    }
    if (me == 0)
        std::cout << "sums, averages and halves of " << n << " ranks are right\n";
}

int main() {
    try {
        demo();
    } catch (const std::exception &error) { // hora's texts say which rank, where and why
        std::cerr << error.what() << "\n";
        return 1;
    }
    return 0;
}
