// The Python module of loops inside CUDA graphs. It knows the driver and no torch; what to build is
// said by adaptive_kernels/executors/graph.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "graph/while_graph.h"

namespace py = pybind11;

namespace ak {
namespace {

// [(handle, type, places of the nodes before it)] of a captured graph.
std::vector<std::tuple<uint64_t, std::string, std::vector<int64_t>>> list_nodes(
    const Driver& driver, uint64_t graph) {
  std::vector<std::tuple<uint64_t, std::string, std::vector<int64_t>>> listed;
  for (const NodeInfo& info : ordered_nodes_of(driver, from<CUgraph>(graph)))
    listed.emplace_back(reinterpret_cast<uint64_t>(info.node), name_of(info.type).name, info.after);
  return listed;
}

}  // namespace

PYBIND11_MODULE(_graph, m) {
  m.doc() = "Loops inside CUDA graphs, through the driver; importing needs no driver.";
  py::register_exception<DriverError>(m, "DriverError", PyExc_RuntimeError);
  py::class_<Driver, std::shared_ptr<Driver>>(m, "Driver")
      .def(py::init<const std::string&>(), py::arg("path") = "libcuda.so.1")
      .def_readonly("version", &Driver::version)
      .def("nodes", &list_nodes, py::arg("graph"))
      .def(
          "refusal",
          [](const Driver& driver, uint64_t graph) {
            return refusal(driver, from<CUgraph>(graph));
          },
          py::arg("graph"));
  m.attr("LEAST_VERSION") = Driver::kLeastVersion;
  // Other threads of Python go on while the driver works.
  const py::call_guard<py::gil_scoped_release> released;
  py::class_<WhileGraph>(m, "WhileGraph")
      .def(py::init<std::shared_ptr<Driver>>(), py::arg("driver").none(false))
      .def_property_readonly("condition", &WhileGraph::condition)
      .def("add_child", &WhileGraph::add_child, py::arg("graph"), py::arg("after"))
      .def("add_kernel", &WhileGraph::add_kernel, py::arg("captured"), py::arg("after"))
      .def("add_copy", &WhileGraph::add_copy, py::arg("destination"), py::arg("source"),
           py::arg("bytes"), py::arg("after"))
      .def("instantiate", &WhileGraph::instantiate, released)
      .def("upload", &WhileGraph::upload, py::arg("stream"), released)
      .def("launch", &WhileGraph::launch, py::arg("stream"), released)
      .def("close", &WhileGraph::close);
}

}  // namespace ak
