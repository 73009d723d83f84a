"""Labels from tables, whose rows name images."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tifffile

from auxmae.data.image import ReadOptions
from auxmae.data.opening import open_collection
from auxmae.errors import DataError
from tests.data.small_files import RNG, cubes, raster, table


def labels_of(source: Path, labels: str, **options: object) -> dict[str, str]:
    collection = open_collection(str(source), labels=labels, **options)
    assert collection.layout == "images"
    names = [*collection.class_names, ""]
    return {Path(path).stem: names[label] for path, label in zip(collection.relative_paths, collection.labels, strict=True)}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_however_a_table_is_written(tmp_path, delimiter, encoding):
    cubes(tmp_path / "data", "a", "b", "c", "d")
    rows = [("plate", "file name", "treatment"), ("1", "b.npy", "Wärme"), ("1", "a.npy", '"ice, dry"'), ("2", "c.npy", "")]
    text = "\r\n".join(delimiter.join(row) for row in rows) + "\r\n\r\n"
    found = labels_of(tmp_path / "data", table(tmp_path / "labels.csv", text, encoding) + ":treatment")
    assert found == {"a": "ice, dry", "b": "Wärme", "c": "", "d": ""}


@pytest.mark.parametrize(
    "named",
    ["{}.npy", "{}", "{}.tif", "/somewhere/else/{}.npy", "data\\{}.npy", " {}.npy ", "../data/{}.npy", "./x/../{}.npy"],
    ids=["name", "stem", "another ending", "another folder", "backslash", "spaces", "from the table", "roundabout"],
)
def test_however_a_table_names_its_images(tmp_path, named):
    cubes(tmp_path / "data", "a.1", "b.2")
    path = table(tmp_path / "labels.csv", f"label,image\nx,{named.format('b.2')}\ny,{named.format('a.1')}\n")
    assert labels_of(tmp_path / "data", path) == {"a.1": "y", "b.2": "x"}


@pytest.mark.parametrize(("stored", "written"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_may_be_characters_of_their_own(tmp_path, stored, written):
    names = [unicodedata.normalize(stored, name) for name in ("Prüfling 1", "Prüfling 2")]
    cubes(tmp_path / "data" / unicodedata.normalize(stored, "Säule"), *names)
    for text in ("image,label\nSäule/Prüfling 1,a\nSäule/Prüfling 2.npy,b\n", "image,label\nPrüfling 1.npy,a\nPrüfling 2,b\n"):
        path = table(tmp_path / "labels.csv", unicodedata.normalize(written, text))
        assert labels_of(tmp_path / "data", path) == dict(zip(names, "ab", strict=True))


def test_a_column_of_parts_is_told_not_to_be_used(tmp_path):
    cubes(tmp_path / "data", "a", "b", "c")
    path = table(tmp_path / "labels.csv", "image,label,split,set\na,x,train,1\nb,y,Test,2\nc,y,test,3\n")
    notices = open_collection(str(tmp_path / "data"), labels=path).notices
    assert (
        "the parts in column split of labels.csv are not taken; the split is drawn anew (see data.split, data.exclude)" in notices
    )
    path = table(tmp_path / "labels.csv", "image,label\na,train\nb,test\nc,test\n")
    assert not any("drawn anew" in notice for notice in open_collection(str(tmp_path / "data"), labels=path).notices)


def test_the_same_file_name_in_two_folders(tmp_path):
    cubes(tmp_path / "data", "one/a", "two/a")
    rows = "path,label\none/a.npy,x\ntwo/a.npy,y\n"
    collection = open_collection(str(tmp_path / "data"), labels=table(tmp_path / "t.csv", rows))
    assert collection.labels.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"column path: a\.npy may be one/a\.npy or two/a\.npy"):
        open_collection(str(tmp_path / "data"), labels=table(tmp_path / "t.csv", "path,label\na.npy,x\n"))


@pytest.mark.parametrize("named", ["{}/DAPI.npy", "/elsewhere/{}/GFP.npy", "../data/{}/DAPI.npy", "{}"])
def test_a_table_names_images_by_the_files_of_their_channels(tmp_path, named):
    for site in ("s1", "s2"):
        for channel in ("DAPI", "GFP"):
            (tmp_path / "data" / site).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(tmp_path / "data" / site / f"{channel}.tif", RNG.integers(0, 4000, (16, 16)).astype(np.uint16))
    path = table(tmp_path / "t.csv", f"file,label\n{named.format('s2')},x\n{named.format('s1')},y\n")
    options = {"channel_pattern": r"/(DAPI|GFP)\.tif$"}
    assert labels_of(tmp_path / "data", path, **options) == {"s1": "y", "s2": "x"}
    with pytest.raises(DataError, match=r"DAPI may be s1 or s2"):
        labels_of(tmp_path / "data", table(tmp_path / "t.csv", "file,label\nDAPI,x\n"), **options)


def test_which_column_names_the_images(tmp_path):
    """Neither the labels nor a running number do, though 1, 2, 3 are names here too."""
    cubes(tmp_path / "data", *"123456")
    rows = [f"{1 + i % 2},{(i + 3) % 6 + 1},{i + 1}" for i in range(6)]
    ids = table(tmp_path / "t.csv", "label,number,row\n" + "\n".join(f"{row}" for row in rows))
    assert labels_of(tmp_path / "data", ids)["4"] == "1"
    files = [f"{1 + i % 2},{(i + 3) % 6 + 1},{i + 1}.npy" for i in range(6)]
    assert labels_of(tmp_path / "data", table(tmp_path / "t.csv", "label,number,file\n" + "\n".join(files))) == {
        str(i + 1): str(1 + i % 2) for i in range(6)
    }
    # A measurement is no name with an ending.
    measured = [f"{i}.7,{i}.npy,{'ab'[i % 2]}" for i in range(1, 7)]
    assert labels_of(tmp_path / "data", table(tmp_path / "t.csv", "area,file,label\n" + "\n".join(measured)))["1"] == "b"


def test_numbers_are_classes_in_their_order(tmp_path):
    cubes(tmp_path / "data", *"abcde")
    path = table(tmp_path / "t.csv", "file,label\na,10\nb,9.0\nc,-1\nd,nan\ne,0\n")
    collection = open_collection(str(tmp_path / "data"), labels=path)
    assert (collection.class_names, collection.labels.tolist()) == (("0", "9", "10"), [2, 1, -1, -1, 0])
    collection = open_collection(str(tmp_path / "data"), labels=path, ignored_labels=(0,))
    assert (collection.class_names, collection.labels.tolist()) == (("9", "10"), [1, 0, -1, -1, -1])


def test_numbers_that_mean_no_label_do_so_among_words(tmp_path):
    cubes(tmp_path / "data", *"abcdef")
    path = table(tmp_path / "t.csv", "file,label\na,0\nb,forest\nc,-1\nd,1.5\ne,2\nf,0.0\n")
    collection = open_collection(str(tmp_path / "data"), labels=path, ignored_labels=(0, 7))
    assert (collection.class_names, collection.labels.tolist()) == (("1.5", "2", "forest"), [-1, 2, -1, 0, 1, -1])
    assert labels_of(tmp_path / "data", path)["a"] == "0"


@pytest.mark.parametrize("column", ["", ":patient_id"])
def test_a_label_for_nearly_every_image_is_no_class(tmp_path, column):
    np.save(tmp_path / "images.npy", np.zeros((1002, 1, 4, 4), np.uint8) + np.arange(1002, dtype=np.uint8)[:, None, None, None])

    def class_names(patients):
        rows = "".join(f"{index},p{index % patients}\n" for index in range(1002))
        path = table(tmp_path / "t.csv", f"image,patient_id\n{rows}") + column
        return open_collection(str(tmp_path / "images.npy"), labels=path, options=ReadOptions(axes="NCHW")).class_names

    assert len(class_names(1000)) == 1000
    with pytest.raises(DataError, match=rf"t\.csv{column}: more than 1000 different values: these are no classes"):
        class_names(1001)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["1_11", "11_1", "111"], ("111", "11_1", "1_11")),
        (["1E2", "10E1", "100"], ("100", "10E1", "1E2")),
        (["٣", "3", "3.0"], ("3", "3.0", "٣")),
        (["1", "1.0", "+1"], ("1",)),
        (["01", "1", "10"], ("01", "1", "10")),
        (["007", "011", "-1"], ("007", "011")),
        (["1.000e+00", "1.0E+01", "-1.0e+00"], ("1", "10")),
        (["90071992547409921", "90071992547409922"], ("90071992547409921", "90071992547409922")),
    ],
)
def test_only_what_is_written_as_a_number_is_one(tmp_path, labels, classes):
    cubes(tmp_path / "data", *"abc"[: len(labels)])
    rows = "".join(f"{name}.npy,{label}\n" for name, label in zip("abc", labels, strict=False))
    assert open_collection(str(tmp_path / "data"), labels=table(tmp_path / "t.csv", "file,label\n" + rows)).class_names == classes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no row below its header line"),
        ("file,label\n", "no row below its header line"),
        ("file,label\nelsewhere.npy,x\n", "no row names an image of the source, such as a.npy"),
        ("file,label\nold/a.npy,x\n", "no row names an image of the source; old/a.npy is of another folder than a.npy"),
        ("file,label\nold\\b.npy,x\n", "old\\b.npy is of another folder than b.npy"),
        ("file,label\na.npy,x\nb.npy,y\na.npy,z\n", "a.npy is 'x' in line 2 and 'z' in line 4"),
        ("file,dose,time\na.npy,1,2\n", "which column holds the labels? It has dose, time"),
        (",file,dose,time\n0,a.npy,1,2\n", "which column holds the labels? It has dose, time"),
        ("file\na.npy\n", "which column holds the labels? It has none beside the names"),
        ("file,label\na.npy,x,y\n", "line 2 has 3 fields, the header line 2"),
        ("file,label,label\na.npy,x,y\n", "two columns have the same name"),
        ("file,label\na.npy,\nb.npy,nan\n", "no image has a label"),
        ("file,label\na.npy,0.25\nb.npy,0.5\n", "no whole numbers"),
        ("file,label\na.npy,1\nb.npy,inf\n", "no whole numbers"),
        ("file,label\na.npy,0.25\nb.npy,2.5e-05\n", "no whole numbers"),
        ("file,label\na.npy,x\n".encode("utf-16").decode("latin-1"), "not UTF-8"),
    ],
)
def test_what_is_wrong_with_a_table(tmp_path, text, words):
    cubes(tmp_path / "data", "a", "b")
    with pytest.raises(DataError) as told:
        open_collection(str(tmp_path / "data"), labels=table(tmp_path / "t.csv", text, "latin-1"))
    assert words in told.value.message
    assert str(tmp_path / "t.csv") in told.value.message


def test_a_column_that_is_not_there(tmp_path):
    cubes(tmp_path / "data", "a", "b")
    path = table(tmp_path / "t.csv", "file,dose,time\na.npy,1,2\n")
    with pytest.raises(DataError, match="no column 'day'") as told:
        open_collection(str(tmp_path / "data"), labels=f"{path}:day")
    assert told.value.hint == "it has dose, time"


def test_rows_that_name_no_image_are_told(tmp_path):
    cubes(tmp_path / "data", "a", "b", "c")
    path = table(tmp_path / "t.csv", "file,label\na.npy,x\nb.npy,y\nz.npy,y\n")
    notices = open_collection(str(tmp_path / "data"), labels=path).notices
    told = "labels: column label of t.csv, for 2 of 3 images, named in column file; 1 of its rows name no image here (z.npy)"
    assert told in notices


@pytest.mark.parametrize("first", ["a.npy", "data/a.npy", "a.tif", "A01"])
def test_a_table_without_a_header_line(tmp_path, first):
    cubes(tmp_path / "data", "a", "image", "A01_b")
    path = table(tmp_path / "labels.csv", f"{first},ctrl\nimage.npy,drug\n")
    with pytest.raises(DataError, match=rf"header line holds {first}.*first row"):
        labels_of(tmp_path / "data", path, group_pattern=r"(\w\d\d)_")
    path = table(tmp_path / "labels.csv", "image,label\na,ctrl\nimage,drug\n")
    assert labels_of(tmp_path / "data", path) == {"a": "ctrl", "image": "drug", "A01_b": ""}


def test_names_that_differ_in_capital_letters_are_told(tmp_path):
    cubes(tmp_path / "data", "A01_a", "A02_b")
    for name in ("a01_A.NPY", "a01"):
        path = table(tmp_path / "labels.csv", f"image,label\n{name},x\n")
        with pytest.raises(DataError, match=f"{name} differ only in capitals"):
            open_collection(str(tmp_path / "data"), labels=path, group_pattern=r"(\w\d\d)_")
    path = table(tmp_path / "labels.csv", "image,label\na01_A,x\nA02_b,y\nother,z\n")
    collection = open_collection(str(tmp_path / "data"), labels=path, layout="images")
    assert collection.labels.tolist() == [-1, 0]
    assert any("1 of them differ from a name here only in capitals (a01_A)" in notice for notice in collection.notices)


def test_a_spreadsheet_is_told_to_be_saved_as_csv(tmp_path):
    cubes(tmp_path / "data", "a", "b")
    path = table(tmp_path / "plate.xlsx", "PK")
    with pytest.raises(DataError, match=r"no reader for \.xlsx") as told:
        open_collection(str(tmp_path / "data"), labels=path)
    assert told.value.hint.endswith("of tables those in CSV")


def test_classes_that_differ_in_capital_letters_are_told(tmp_path):
    cubes(tmp_path / "data", "a", "b", "c")
    told = "labels: DMSO and dmso differ only in capitals, and are classes of their own: correct t.csv where they mean the same"
    for rows, expected in (("a,DMSO\nb,dmso\nc,Taxol\n", True), ("a,DMSO\nb,DMSO\nc,Taxol\n", False)):
        path = table(tmp_path / "t.csv", f"image,label\n{rows}")
        assert (told in open_collection(str(tmp_path / "data"), labels=path).notices) == expected


def test_a_row_of_another_folder_is_another_image(tmp_path):
    cubes(tmp_path / "data" / "train", "a", "b")
    cubes(tmp_path / "data" / "test", "a", "b")
    rows = "file,label\ntrain/a.npy,x\ntrain/b.npy,x\ntest/a.npy,y\ntest/b.npy,z\n"
    whole = table(tmp_path / "whole.csv", rows)
    assert labels_of(tmp_path / "data" / "test", whole) == {"a": "y", "b": "z"}
    assert open_collection(str(tmp_path / "data"), labels=whole).labels.tolist() == [1, 2, 0, 0]
    with pytest.raises(DataError, match="no row names an image"):
        open_collection(str(tmp_path / "data" / "test"), labels=table(tmp_path / "t.csv", "file,label\ntrain/a.npy,x\n"))
    raster(tmp_path / "masks" / "train" / "a.png", 1, size=16)
    with pytest.raises(DataError, match="no label raster is called like an image"):
        open_collection(str(tmp_path / "data" / "test"), labels=str(tmp_path / "masks"))


def test_rows_that_name_groups_of_images(tmp_path):
    cubes(tmp_path / "data", "A01_s1", "A01_s2", "B02_s1", "B03_s1", "x")
    path = table(tmp_path / "plate.csv", "plate,well,drug\nP1,A01,dmso\nP1,B02,taxol\nP1,C01,dmso\n")
    with pytest.raises(DataError, match="no row names an image") as told:
        open_collection(str(tmp_path / "data"), labels=f"{path}:drug")
    assert "data.group_pattern" in told.value.hint
    found = labels_of(tmp_path / "data", f"{path}:drug", group_pattern=r"^([A-H]\d\d)_")
    assert found == {"A01_s1": "dmso", "A01_s2": "dmso", "B02_s1": "taxol", "B03_s1": "", "x": ""}
    with pytest.raises(DataError, match="no row names an image") as told:
        open_collection(str(tmp_path / "data"), labels=f"{path}:drug", group_pattern=r"(A01_s|B)")
    assert told.value.hint.endswith("groups as data.group_pattern finds them, such as A01_s")
    table(tmp_path / "plate.csv", "well,drug\nA01,dmso\nA01,taxol\n")
    with pytest.raises(DataError, match=r"A01_s1\.npy is 'dmso' in line 2 and 'taxol' in line 3") as told:
        open_collection(str(tmp_path / "data"), labels=f"{path}:drug", group_pattern=r"^([A-H]\d\d)_")
    assert "column well names groups of data.group_pattern" in told.value.hint
    table(tmp_path / "plate.csv", "file,drug\nA01_s1,dmso\nA01_s1,taxol\n")
    with pytest.raises(DataError, match="in line 3") as told:
        open_collection(str(tmp_path / "data"), labels=f"{path}:drug", group_pattern=r"^([A-H]\d\d)_")
    assert told.value.hint == "an image has one label"


@pytest.mark.parametrize("written", ["A{0}", "A{0:02}", "A-{0}", "A/{0}", "A_{0:02}"])
@pytest.mark.parametrize(("names", "pattern"), [("A{0:02}_s1", r"^(A\d+)"), ("A-{0}_s1", r"^(A-\d+)"), ("A/{0}/0", r"^(.*)/")])
def test_wells_are_the_same_however_they_are_written(tmp_path, written, names, pattern):
    stems = [names.format(number) for number in (1, 2, 10)]
    cubes(tmp_path / "data", *stems)
    rows = "".join(f"{written.format(number)},{drug}\n" for number, drug in ((10, "c"), (1, "a"), (2, "b")))
    path = table(tmp_path / "plate.csv", f"well,drug\n{rows}")
    collection = open_collection(str(tmp_path / "data"), labels=path, group_pattern=pattern)
    found = {
        file.removesuffix(".npy"): collection.class_names[label]
        for file, label in zip(collection.relative_paths, collection.labels, strict=True)
    }
    assert found == dict(zip(stems, "abc", strict=True))


def test_groups_that_are_the_same_well_are_told_apart_by_their_names_alone(tmp_path):
    cubes(tmp_path / "data", "A1_s1", "A01_s1", "B02_s1")
    path = table(tmp_path / "plate.csv", "well,drug\nA-1,x\n")
    with pytest.raises(DataError, match="no row names an image"):
        open_collection(str(tmp_path / "data"), labels=path, group_pattern=r"^([AB]\d+)")
    table(tmp_path / "plate.csv", "well,drug\nA-1,x\nA01,y\nB2,z\n")
    found = labels_of(tmp_path / "data", path, group_pattern=r"^([AB]\d+)")
    assert found == {"A1_s1": "", "A01_s1": "y", "B02_s1": "z"}


def test_a_group_that_is_no_well_leaves_the_others_wells(tmp_path):
    cubes(tmp_path / "data", "A01_s1", "A02_s1", "A10_s1", "QC_s1")
    path = table(tmp_path / "plate.csv", "well,drug\nA1,a\nA2,b\nA10,c\nQC,none\n")
    found = labels_of(tmp_path / "data", path, group_pattern="^([^_]+)_")
    assert found == {"A01_s1": "a", "A02_s1": "b", "A10_s1": "c", "QC_s1": "none"}


def test_the_entries_of_an_array_have_rows_in_order(tmp_path):
    np.save(tmp_path / "all.npy", np.zeros((4, 5, 16, 16), np.float32) + np.arange(5)[:, None, None])
    path = table(tmp_path / "t.csv", 'label\nx\ny\n""\nx\n')
    collection = open_collection(str(tmp_path / "all.npy"), labels=path)
    assert (collection.class_names, collection.labels.tolist()) == (("x", "y"), [0, 1, -1, 0])
    with pytest.raises(DataError, match="2 rows below its header line, and 4 images"):
        open_collection(str(tmp_path / "all.npy"), labels=table(tmp_path / "t.csv", "label\nx\ny\n"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("index,label\n2,y\n0,x\n3,z\n1,\n", "numbered by column index"),
        (",drug\n2,y\n0,x\n3,z\n1,\n", "numbered by column without a name"),
        ("drug,ID\nz,4\ny, 3\n,2\nx,1\n", "numbered by column ID"),
        ("label,id\nx,7\n,3\ny,1\nz,0\n", "in the order of its rows"),
        (",id,label\n0,2,y\n1,0,x\n2,3,z\n3,1,\n", "numbered by column id, not as column without a name does"),
        ("id,index,label\n0,2,y\n1,0,x\n2,3,z\n3,1,\n", "numbered by column index, not as column id does"),
        (",id,label\n2,3,y\n0,1,x\n3,4,z\n1,2,\n", "numbered by column id"),
        ("label,index\nx,0\n,1.5\ny,a\nz,\n", "in the order of its rows"),
        ("label,dose\nx,3\n,2\ny,1\nz,0\n", "in the order of its rows"),
    ],
)
def test_a_column_may_number_the_entries_of_an_array(tmp_path, text, told):
    np.save(tmp_path / "all.npy", np.zeros((4, 5, 16, 16), np.float32) + np.arange(5)[:, None, None])
    collection = open_collection(str(tmp_path / "all.npy"), labels=table(tmp_path / "t.csv", text))
    assert (collection.class_names, collection.labels.tolist()) == (("x", "y", "z"), [0, -1, 1, 2])
    assert any(notice.startswith("labels: column") and notice.endswith(told) for notice in collection.notices)


def test_columns_that_number_the_entries_of_an_array_differently_are_asked_about(tmp_path):
    np.save(tmp_path / "all.npy", np.zeros((2, 5, 16, 16), np.float32) + np.arange(5)[:, None, None])
    path = table(tmp_path / "t.csv", "id,image,label\n0,1,x\n1,0,y\n")
    with pytest.raises(DataError, match=r"t\.csv: columns id and image number the images differently") as told:
        open_collection(str(tmp_path / "all.npy"), labels=path)
    assert "index" in told.value.hint
    # What has no name may be all that is beside the names.
    nameless = table(tmp_path / "n.csv", "id,\n0,y\n1,x\n")
    assert open_collection(str(tmp_path / "all.npy"), labels=nameless).labels.tolist() == [1, 0]
    # A column of labels numbers nothing.
    assert open_collection(str(tmp_path / "all.npy"), labels=f"{path}:image").labels.tolist() == [1, 0]


def test_scenes_are_not_labelled_as_a_whole(tmp_path):
    cubes(tmp_path / "data", "a", "b", size=64)
    path = table(tmp_path / "t.csv", "file,label\na.npy,x\nb.npy,y\n")
    assert open_collection(str(tmp_path / "data"), labels=path).layout == "images"
    with pytest.raises(DataError, match="its labels are of whole images") as told:
        open_collection(str(tmp_path / "data"), labels=path, layout="scenes")
    assert told.value.hint == "set data.layout = 'images'"


def test_a_table_names_wells_whose_fields_are_files_called_like_them(tmp_path):
    """Of A01 to A12, files, a table's A1 to A12 calls the last three alone by their names."""
    cubes(tmp_path / "data", *(f"A{number:02}" for number in range(1, 13)))
    path = table(tmp_path / "plate.csv", "well,drug\n" + "".join(f"A{number},d{number}\n" for number in range(1, 13)))
    found = labels_of(tmp_path / "data", f"{path}:drug", group_pattern="([A-H][0-9]+)")
    assert found == {f"A{number:02}": f"d{number}" for number in range(1, 13)}
