"""What the guide has people paste is what the tests run, and what is published is whole."""

import os
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
GUIDE = os.path.join(ROOT, "docs", "python.md")


@unittest.skipUnless(os.path.exists(GUIDE), "the guide is only in the repository")
class Guide(unittest.TestCase):
    def test_it_has_the_examples_as_they_are(self):
        with open(GUIDE) as file:
            guide = file.read()
        for name in ("gunicorn.conf.py", "uwsgi_app.py", "celery_app.py", "pool.py", "arrays.py"):
            with open(os.path.join(ROOT, "python", "examples", name)) as file:
                self.assertIn("```python\n%s```\n" % file.read(), guide, name)


class Published(unittest.TestCase):
    def test_it_has_its_papers_and_what_its_tests_need(self):
        """Links that lead out of the package would lead nowhere once it is unpacked."""
        package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        for name in ("LICENSE-APACHE", "LICENSE-MIT", "README.md", "pyproject.toml", "src/sksm/py.typed", "examples/app.py"):
            path = os.path.join(package, name)
            self.assertTrue(os.path.isfile(path), name)
            self.assertFalse(os.path.islink(path), name)
        for part in ("src", "tests", "examples"):
            for directory, _, names in os.walk(os.path.join(package, part)):
                for name in names:
                    self.assertFalse(os.path.islink(os.path.join(directory, name)), name)

    @unittest.skipUnless(os.path.exists(GUIDE), "the other copies are only in the repository")
    def test_the_licences_are_those_of_the_project(self):
        for name in ("LICENSE-APACHE", "LICENSE-MIT"):
            with open(os.path.join(ROOT, name)) as whole, open(os.path.join(ROOT, "python", name)) as copy:
                self.assertEqual(copy.read(), whole.read(), name)


if __name__ == "__main__":
    unittest.main()
